"""From records to what people read: tables, Markdown, a page with plots, JUnit; and gates, which pass or refuse."""
