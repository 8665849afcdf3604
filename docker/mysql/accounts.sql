-- The accounts, each with what it needs and no more. The tables must be there already. Change the passwords.

-- The application: it writes the outbox in its own transactions.
CREATE USER IF NOT EXISTS 'app'@'%' IDENTIFIED BY 'app';
GRANT SELECT, INSERT, UPDATE, DELETE ON app.* TO 'app'@'%';

-- cdc-relay. On MariaDB the last privilege is called BINLOG MONITOR.
CREATE USER IF NOT EXISTS 'relay'@'%' IDENTIFIED BY 'relay';
GRANT SELECT, UPDATE ON app.agent_outbox_messages TO 'relay'@'%';
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'relay'@'%';

-- cdc-consumer.
CREATE USER IF NOT EXISTS 'consumer'@'%' IDENTIFIED BY 'consumer';
GRANT SELECT, UPDATE ON app.agent_outbox_messages TO 'consumer'@'%';
GRANT SELECT, INSERT ON app.chat_histories TO 'consumer'@'%';
GRANT SELECT, UPDATE ON app.agent_chats TO 'consumer'@'%';
